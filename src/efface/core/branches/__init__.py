"""The forms of branches, one file each, by the name that an edit's file gives them."""

from efface.core.branch import Branch
from efface.core.branches.bottlenecks import Bottlenecks as Bottlenecks
from efface.core.branches.gates import TokenGates as TokenGates
from efface.core.branches.membranes import Membranes as Membranes

FORMS = Branch.forms  # with those above, for to be imported is to be known
