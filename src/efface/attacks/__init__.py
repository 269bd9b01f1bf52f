"""The table of attacks by name. A new attack is one file and one line in this table, or an installed package's entry point."""

from typing import TYPE_CHECKING

from efface.core.registry import Registry

if TYPE_CHECKING:  # imports torch, which a list of attacks does not need
    from efface.attacks.base import Attack

TABLE = {
    "baselines": "efface.attacks.baselines:Baselines",
    "household": "efface.attacks.household:Household",
    "unlearndiffatk": "efface.attacks.unlearndiffatk:UnlearnDiffAtk",
    "p4d": "efface.attacks.p4d:P4D",
    "ring-a-bell": "efface.attacks.ring_a_bell:RingABell",
    "soft": "efface.attacks.soft:Soft",
    "rece-rows": "efface.attacks.rece_rows:RECERows",
    "inverse": "efface.attacks.inverse:Inverse",
    "inversion": "efface.attacks.inversion:Inversion",
    "latent": "efface.attacks.latent:Latent",
    "relearn": "efface.attacks.relearn:Relearn",
    "removal": "efface.attacks.removal:Removal",
    "dilution": "efface.attacks.dilution:Dilution",
    "backdoor": "efface.attacks.backdoor:Backdoor",
}

REGISTRY: "Registry[Attack]" = Registry("attack", TABLE, "efface.attacks")
find, names, declarations, settings, make = (
    REGISTRY.find,
    REGISTRY.names,
    REGISTRY.declarations,
    REGISTRY.settings,
    REGISTRY.make,
)
