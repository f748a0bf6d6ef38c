import pytest

from promoterd import errors
from promoterd.errors import MountNotFound, PromoterdError, TripWire


def test_a_class_speaks_by_its_docstring_and_gives_the_way_out() -> None:
    error = TripWire(mountpoint="/ovl", reason="EIO in /app")

    assert error.message == "Marking on /ovl has stopped: EIO in /app."
    assert error.hint == "find out why, then `promoterd resume /ovl`"
    assert str(error) == f"{error.message} ({error.hint})"


def test_a_hint_that_speaks_of_what_the_error_does_not_name_is_left_out() -> None:
    assert TripWire("stopped").hint is None
    assert str(TripWire("stopped")) == "stopped"


def test_a_hint_given_by_hand_is_taken_as_it_is() -> None:
    assert MountNotFound(mountpoint="/ovl", hint="{not} a field").hint == "{not} a field"


@pytest.mark.parametrize(
    "error", [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, PromoterdError)]
)
def test_every_error_has_a_message_and_an_exit_code(error: type[PromoterdError]) -> None:
    assert error.__doc__
    assert 0 < error.exit_code < 256
