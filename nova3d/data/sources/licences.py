"""Licence names: the spellings of several sources brought to SPDX, and where each licence can be read."""

_URLS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-ND-4.0": "https://creativecommons.org/licenses/by-nd/4.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "CC-BY-NC-SA-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "CC-BY-NC-ND-4.0": "https://creativecommons.org/licenses/by-nc-nd/4.0/",
    "MIT": "https://spdx.org/licenses/MIT.html",
    "MIT-0": "https://spdx.org/licenses/MIT-0.html",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "BSD-3-Clause": "https://spdx.org/licenses/BSD-3-Clause.html",
}

# Objaverse's annotations use Sketchfab's short names; all of Sketchfab's Creative Commons licences are version 4.0.
_SPELLINGS = {
    "cc0": "CC0-1.0",
    "by": "CC-BY-4.0",
    "by-sa": "CC-BY-SA-4.0",
    "by-nd": "CC-BY-ND-4.0",
    "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0",
    "by-nc-nd": "CC-BY-NC-ND-4.0",
    "creative commons attribution 4.0 international": "CC-BY-4.0",
    **{name.lower(): name for name in _URLS},
}


def spdx(name: str) -> str:
    """Return the SPDX name of a licence in any known spelling; an unknown name is only stripped."""
    return _SPELLINGS.get(name.strip().lower(), name.strip())


def licence_url(name: str) -> str:
    """Return the address of a licence's text, "" where it is not known."""
    return _URLS.get(spdx(name), "")
