"""The forms of branches, one file each; importing this makes a file's form known."""

from efface.core.branches.bottlenecks import Bottlenecks as Bottlenecks
from efface.core.branches.gates import TokenGates as TokenGates
from efface.core.branches.membranes import Membranes as Membranes
