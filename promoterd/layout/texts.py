"""A layout as systemd units, as lines of fstab, and as commands. Pure."""

from collections.abc import Iterator, Sequence
from itertools import chain

from promoterd.errors import UsageError
from promoterd.layout.plan import Layout
from promoterd.layout.spelling import fstab_field, mount_unit, unit_value, unit_word
from promoterd.overlay.remedy import shell_word
from promoterd.paths import display

SERVICE = "promoterd.service"
_NETWORK = b"_netdev"
_OLD_CALL = "LIBMOUNT_FORCE_MOUNT2=always"
"""Makes mount(8) of util-linux 2.39 and newer call mount(2), which takes longer values than fsconfig(2)."""


def units(layout: Layout) -> dict[str, str]:
    """The text of each mount unit by its name, the overlay's last. Raises UsageError for what no unit can say."""
    found = {}
    for source, at, options in layout.servers:
        found[mount_unit(at)] = _unit(
            [
                f"Description={unit_value(source)}, for the overlay at {unit_value(layout.mountpoint)}",
                "Wants=network-online.target",
                "After=network-online.target",
            ],
            [source, at, b"nfs", options],
        )
    servers = " ".join(mount_unit(at) for _, at, _ in layout.servers)
    local = " ".join(unit_word(path) for path in (layout.upper, layout.work, layout.home))
    found[mount_unit(layout.mountpoint)] = _unit(
        [
            f"Description=Overlay with a metadata layer at {unit_value(layout.mountpoint)}",
            f"Requires={servers}",
            f"After={servers}",
            f"RequiresMountsFor={local}",
            f"Before={SERVICE}",
        ],
        [b"overlay", layout.mountpoint, b"overlay", layout.overlay_options],
        [f"Environment={_OLD_CALL}"] if layout.is_long else [],
    )
    return found


def _unit(about: list[str], mount: list[bytes], more: Sequence[str] = ()) -> str:
    source, at, fstype, options = mount
    lines = [
        "# Written by `promoterd layout`, which writes it anew with --force.",
        "[Unit]",
        *about,
        "",
        "[Mount]",
        f"What={unit_value(source)}",
        f"Where={unit_value(at)}",
        f"Type={unit_value(fstype)}",
        f"Options={unit_value(options + b',' + _NETWORK)}",
        *more,
        "",
        "[Install]",
        "WantedBy=remote-fs.target",
    ]
    return "".join(f"{line}\n" for line in lines)


def fstab(layout: Layout) -> list[str]:
    r"""The lines, the overlay's last. Raises UsageError for what fstab cannot say.

    systemd-fstab-generator takes two backslashes for one where mount(8) takes two, and a blank in
    ``x-systemd.requires-mounts-for=`` for the end of the path.
    """
    local = (layout.upper, layout.work, layout.home)
    for path in chain(layout.mountpoints, local):
        if b"\\" in path or (path in local and b" " in path):
            raise UsageError(
                f"{display(path)}: systemd and mount(8) read a backslash in fstab differently, and systemd no blank in "
                "the path of a layer",
                hint="choose another path, or say --format units",
            )
    if layout.is_long:
        raise UsageError(
            "the overlay's lowerdir= would have more than the 255 bytes that mount(8) of util-linux 2.39 and newer "
            "can give the kernel",
            hint="choose shorter paths with --state, --lower-mountpoint and --data-mountpoint, or say --format units",
        )
    ordering = [
        *(b"x-systemd.requires=" + _option(at) for _, at, _ in layout.servers),
        *(b"x-systemd.requires-mounts-for=" + _option(path) for path in local),
        b"x-systemd.before=" + SERVICE.encode(),
    ]
    lines = [_line(source, at, b"nfs", [options, _NETWORK]) for source, at, options in layout.servers]
    return [*lines, _line(b"overlay", layout.mountpoint, b"overlay", [layout.overlay_options, _NETWORK, *ordering])]


def _option(path: bytes) -> bytes:
    return path.replace(b",", rb"\,")


def _line(source: bytes, at: bytes, fstype: bytes, options: list[bytes]) -> str:
    fields = (source, at, fstype, b",".join(options))
    return " ".join([*map(fstab_field, fields), "0", "0"])


def commands(layout: Layout) -> list[str]:
    """What mounts it by hand, for bash, in this order; what is there already is left as it is, but for the mounts."""
    mount = f"{_OLD_CALL} mount" if layout.is_long else "mount"
    return [
        f"mkdir -p {_words(layout.mountpoints)}",
        *(f"mount -t nfs -o {_words((options, source, at))}" for source, at, options in layout.servers),
        *directories(layout),
        f"{mount} -t overlay overlay -o {_words((layout.overlay_options, layout.mountpoint))}",
    ]


def directories(layout: Layout) -> Iterator[str]:
    """The commands that make the local directories, once the server is mounted."""
    yield f"mkdir -p {_words((layout.work, *layout.layer))} && chmod 700 {shell_word(layout.home)}"
    yield new_upper(layout)


def new_upper(layout: Layout) -> str:
    """The command that makes the upper layer where there is none, once the server is mounted.

    The root of an overlay has the mode, owner and times of upper's root, so a new one gets those of the server's.
    """
    like, upper = shell_word(layout.exports[0].lower), shell_word(layout.upper)
    return (
        f'[ -d {upper} ] || {{ mkdir -p {upper} && chown "$(stat -c %u:%g {like})" {upper} && '
        f'chmod "$(stat -c %a {like})" {upper} && touch -r {like} {upper}; }}'
    )


def steps(layout: Layout, *, fstab: bool) -> list[str]:
    """The commands that mount what was written into fstab, or else the units."""
    if fstab:
        at = [shell_word(place) for place in layout.mountpoints]
        mounts = [f"mount {place}" for place in at]
        return ["systemctl daemon-reload", *mounts[:-1], new_upper(layout), mounts[-1]]
    names = [shell_word(mount_unit(place).encode()) for place in layout.mountpoints]
    return [
        "systemctl daemon-reload",
        f"systemctl start {names[0]}",
        new_upper(layout),
        f"systemctl enable --now {' '.join(names)}",
    ]


def _words(words: tuple[bytes, ...]) -> str:
    return " ".join(map(shell_word, words))
