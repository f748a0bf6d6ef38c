"""Heat lists: which directories a run needed, with counts, as files that can be merged and warmed from."""

from promoterd.heatlist import names
from promoterd.heatlist.files import read_list, write_list
from promoterd.heatlist.model import HeatList, Uses

__all__ = ["HeatList", "Uses", "names", "read_list", "write_list"]
