"""The forms of branches (adapter modules), one file each; `FORMS` has them by the name in an edit's file."""

from efface.core.branch import Branch
from efface.core.branches.bottlenecks import Bottlenecks as Bottlenecks
from efface.core.branches.gates import TokenGates as TokenGates
from efface.core.branches.membranes import Membranes as Membranes

FORMS = Branch.forms  # filled by the imports above
