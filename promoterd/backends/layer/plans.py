"""What a plan for the metadata layer holds besides the directories."""

from dataclasses import dataclass, field

from promoterd.backends.base import DirectoryTerms, Plan


@dataclass
class LayerPlan(Plan):
    """Directories to complete, children first, and after ``path`` the ancestors that are completed with it.

    Without ``mark`` they are only brought in line with the server, which goes on being asked.
    """

    demands: dict[bytes, DirectoryTerms] = field(default_factory=dict)
    mark: bool = True
    entering: list[bytes] = field(default_factory=list)
    """Directories that come into the layer as stubs: ancestors, and children that are not complete."""

    @property
    def renewed(self) -> list[bytes]:
        """The directories themselves, and those that come into the layer with them."""
        return [*(directory.path for directory in self.directories), *self.entering]
