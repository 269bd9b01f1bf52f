"""The table of erasers by name. A new method is one file and one line in this table, or an installed package's entry point."""

from typing import TYPE_CHECKING, Any

from efface.core.registry import Registry

if TYPE_CHECKING:  # imports torch, which a list of methods does not need
    from efface.erasers.base import Eraser

TABLE = {
    "uce": "efface.erasers.uce:UCE",
    "debias": "efface.erasers.debias:Debias",
    "time": "efface.erasers.time:TIME",
    "rece": "efface.erasers.rece:RECE",
    "mace": "efface.erasers.mace:MACE",
    "cpe": "efface.erasers.cpe:CPE",
    "mapping": "efface.erasers.mapping:TextMapping",
    "esd": "efface.erasers.esd:ESD",
    "naive": "efface.erasers.naive:Naive",
    "ablation": "efface.erasers.ablation:ConceptAblation",
    "ap": "efface.erasers.ap:AP",
    "age": "efface.erasers.age:AGE",
    "spm": "efface.erasers.spm:SPM",
    "receler": "efface.erasers.receler:Receler",
    "kpop": "efface.erasers.kpop:KPOP",
    "sld": "efface.erasers.sld:SLD",
    "negative": "efface.erasers.negative:NegativePrompt",
}

REGISTRY: "Registry[Eraser]" = Registry("method", TABLE, "efface.erasers")
find, names, declarations, settings, make = (
    REGISTRY.find,
    REGISTRY.names,
    REGISTRY.declarations,
    REGISTRY.settings,
    REGISTRY.make,
)


def split(name: str) -> "tuple[type[Eraser], dict[str, Any]]":
    """As `settings`, with the method's class."""
    method, given = settings(name)
    return find(method), given
