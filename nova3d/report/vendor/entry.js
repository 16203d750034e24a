// What the report's viewer needs of three.js. README.md says how three.min.js is made from this file.
export {
  BufferAttribute, Camera, DoubleSide, LineBasicMaterial, LineSegments, Mesh, MeshBasicMaterial, Scene, ShaderMaterial,
  WebGLRenderer, WireframeGeometry,
} from "three";
export { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
