"""The same problem handed to other libraries, each where it is installed."""

import importlib
import importlib.metadata

from peers.common import Method

LIBRARIES = ("diffusers", "k_diffusion", "azula", "diffusionjax")


def installed() -> tuple[list[Method], dict[str, str]]:
    """The methods of every peer that can be imported, and the version of each, or why it is left out."""
    methods: list[Method] = []
    versions = {}
    for library in LIBRARIES:
        try:
            module = importlib.import_module(f"peers.with_{library}")
        except ImportError as error:
            versions[library] = f"not installed ({error})"
            continue
        methods += module.methods()
        versions[library] = importlib.metadata.version(library.replace("_", "-"))
    return methods, versions
