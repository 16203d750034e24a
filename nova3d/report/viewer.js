"use strict";
// The mesh in 3D: a GLB drawn by three.js from the run's own cameras. Frames and intrinsics are those of
// nova3d/cameras.py. Zoom and pan act on the picture, after the projection, so that a picture laid over the canvas
// follows them by a CSS transform.

const SHADED = `
  varying vec3 vNormal;
  void main() {
    vNormal = normalMatrix * normal;
    gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0);
  }`;
// World normals as (n + 1) / 2, the code of the normal maps.
const NORMALS = `
  varying vec3 vNormal;
  void main() {
    vec3 n = normalize(gl_FrontFacing ? vNormal : -vNormal);
    gl_FragColor = vec4((vec4(n, 0.0) * viewMatrix).xyz * 0.5 + 0.5, 1.0);
  }`;
// Soft light from the upper left of the viewer; surfaces that turn away darken.
const CLAY = `
  varying vec3 vNormal;
  void main() {
    vec3 n = normalize(gl_FrontFacing ? vNormal : -vNormal);
    float light = 0.5 + 0.5 * dot(n, normalize(vec3(-0.45, 0.65, 0.6)));
    float shade = mix(0.22, 0.97, light * light) * mix(0.78, 1.0, n.z);
    gl_FragColor = vec4(vec3(0.93, 0.90, 0.86) * shade, 1.0);
  }`;
const NEAR = 0.05, REACH = 3; // world units: the nearest depth of a perspective view, and what lies around the origin
const MIN_ZOOM = 0.4, MAX_ZOOM = 12;
const MODES = ["texture", "normals", "clay", "wireframe"];

/** Draws the meshes of a GLB.
 *  canvas: has the views' aspect ratio.
 *  rig: {model, width, height, views: [{c2w: 16 numbers by row, intrinsics: [fl_x, fl_y, cx, cy]}]}.
 *  onchange: called after the camera has moved, before the next picture is drawn.
 *  Throws where the browser has no WebGL. */
class Viewer {
  zoom = 1;
  pan = [0, 0]; // normalised device coordinates

  constructor(canvas, rig, onchange) {
    const context = canvas.getContext("webgl2"); // asked for here, since three.js logs an error besides throwing
    if (!context) throw new Error("the browser has no WebGL 2");
    this.renderer = new THREE.WebGLRenderer({ canvas, context });
    Object.assign(this, { canvas, rig, onchange, scene: new THREE.Scene(), camera: new THREE.Camera(), meshes: [] });
    this.camera.matrixAutoUpdate = false;
    this.materials = {
      normals: new THREE.ShaderMaterial({ vertexShader: SHADED, fragmentShader: NORMALS, side: THREE.DoubleSide }),
      clay: new THREE.ShaderMaterial({ vertexShader: SHADED, fragmentShader: CLAY, side: THREE.DoubleSide }),
    };
    this.materials.clay.polygonOffset = true; // the wireframe's lines lie on the surface
    this.materials.clay.polygonOffsetFactor = this.materials.clay.polygonOffsetUnits = 1;
    this.mode = MODES[0];
    this.lookFrom(0);
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("webglcontextrestored", () => this.draw()); // phones take it away in the background
  }

  /** Reads a GLB from an ArrayBuffer. */
  async load(glb) {
    const { scene } = await new THREE.GLTFLoader().parseAsync(glb, "");
    const found = [];
    scene.traverse((node) => node.isMesh && found.push(node));
    if (!found.length) throw new Error("the GLB holds no mesh");
    const lines = new THREE.LineBasicMaterial({ color: 0x1d3a4a, transparent: true, opacity: 0.55 });
    for (const mesh of found) {
      if (!mesh.geometry.attributes.normal) mesh.geometry.computeVertexNormals();
      const { map, color } = mesh.material;
      if (map) map.anisotropy = this.renderer.capabilities.getMaxAnisotropy();
      const texture = new THREE.MeshBasicMaterial({ map, color, side: THREE.DoubleSide });
      texture.vertexColors = Boolean(mesh.geometry.attributes.color);
      this.meshes.push({ mesh, texture, lines: null, lineMaterial: lines });
    }
    this.scene.add(scene);
    this.setMode(this.mode);
  }

  setMode(mode) {
    this.mode = mode;
    for (const part of this.meshes) {
      part.mesh.material = mode === "texture" ? part.texture : this.materials[mode === "normals" ? "normals" : "clay"];
      if (mode === "wireframe" && !part.lines) {
        part.lines = new THREE.LineSegments(new THREE.WireframeGeometry(part.mesh.geometry), part.lineMaterial);
        part.mesh.add(part.lines);
      }
      if (part.lines) part.lines.visible = mode === "wireframe";
    }
    this.draw();
  }

  /** The camera of a view, exactly. */
  lookFrom(index) {
    // Columns of the matrix: the axis that points backward, and the position.
    const [, , backX, x, , , backY, y, , , backZ, z] = this.rig.views[index].c2w;
    this.view = index;
    this.azimuth = Math.atan2(backX, backZ);
    this.elevation = Math.asin(Math.max(-1, Math.min(1, backY)));
    this.distance = backX * x + backY * y + backZ * z; // of the camera's plane from the origin
    this.changed();
  }

  /** Turns about the origin, in radians; the camera is then of no view. */
  turn(azimuth, elevation) {
    this.view = null;
    this.azimuth += azimuth;
    this.elevation = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, this.elevation + elevation));
    this.changed();
  }

  /** Zooms about a point of the picture, in normalised device coordinates. */
  zoomBy(factor, x = 0, y = 0) {
    const zoom = Math.max(MIN_ZOOM, Math.min(MAX_ZOOM, this.zoom * factor));
    this.pan = [x - (x - this.pan[0]) * (zoom / this.zoom), y - (y - this.pan[1]) * (zoom / this.zoom)];
    this.zoom = zoom;
    this.changed();
  }

  /** Moves the picture, in normalised device coordinates. */
  panBy(x, y) {
    this.pan = [this.pan[0] + x, this.pan[1] + y];
    this.changed();
  }

  resetZoom() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.changed();
  }

  changed() {
    const matrix = this.pose();
    // The view that looks most nearly in the camera's direction.
    const likeness = this.rig.views.map(({ c2w }) => c2w[2] * matrix[2] + c2w[6] * matrix[6] + c2w[10] * matrix[10]);
    this.nearest = this.view ?? likeness.indexOf(Math.max(...likeness));
    this.onchange?.();
    this.draw();
  }

  /** Camera to world, 16 numbers by row. */
  pose() {
    if (this.view !== null) return this.rig.views[this.view].c2w;
    const [sa, ca] = [Math.sin(this.azimuth), Math.cos(this.azimuth)];
    const [se, ce] = [Math.sin(this.elevation), Math.cos(this.elevation)];
    const back = [ce * sa, se, ce * ca], d = this.distance;
    return [ca, -se * sa, back[0], d * back[0], 0, ce, back[1], d * back[1], -sa, -se * ca, back[2], d * back[2],
      0, 0, 0, 1];
  }

  draw() {
    if (!this.pending) this.pending = requestAnimationFrame(() => { this.pending = 0; this.drawNow(); });
  }

  drawNow() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !this.meshes.length) return;
    const ratio = Math.min(window.devicePixelRatio, 2);
    if (this.canvas.width !== Math.floor(width * ratio) || this.canvas.height !== Math.floor(height * ratio)) {
      this.renderer.setPixelRatio(ratio);
      this.renderer.setSize(width, height, false);
    }
    const { camera } = this;
    camera.matrix.set(...this.pose());
    camera.updateMatrixWorld(true);
    camera.projectionMatrix.set(...this.projection());
    camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();
    this.renderer.render(this.scene, camera);
  }

  /** From camera axes to clip space, 16 numbers by row, zoom and pan included. */
  projection() {
    const { model, width, height, views } = this.rig;
    const [fx, fy, cx, cy] = views[this.nearest].intrinsics;
    const x = (2 * fx) / width, y = (2 * fy) / height, right = (2 * cx) / width - 1, up = 1 - (2 * cy) / height;
    const s = this.zoom, [px, py] = this.pan;
    if (model === "orthographic") {
      const near = this.distance - REACH, far = this.distance + REACH;
      return [s * x, 0, 0, s * right + px, 0, s * y, 0, s * up + py,
        0, 0, -2 / (far - near), -(far + near) / (far - near), 0, 0, 0, 1];
    }
    const near = Math.max(NEAR, this.distance - REACH), far = this.distance + REACH;
    return [s * x, 0, -s * right - px, 0, 0, s * y, -s * up - py, 0,
      0, 0, -(far + near) / (far - near), (-2 * far * near) / (far - near), 0, 0, -1, 0];
  }
}
