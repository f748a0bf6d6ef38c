"""A host and a mount that nothing speaks against, to take one thing away from in a test."""

from promoterd.overlay.facts import Facts, Host, Trial
from promoterd.overlay.mountinfo import parse
from promoterd.overlay.mounts import ModuleDefaults, Overlay, overlay_of

GOOD_TRIAL = Trial(
    metacopy=True,
    absolute_redirect=True,
    reconfigure="fspick",
    opaque_takes_effect=True,
    data_only_layers=True,
    lazy_data=True,
    layer_answers_misses=True,
)
GOOD_HOST = Host(
    kernel="6.1.0",
    capabilities=frozenset(
        {
            "CAP_SYS_ADMIN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_CHOWN",
            "CAP_SYS_PTRACE",
            "CAP_FSETID",
            "CAP_SETFCAP",
        }
    ),
    initial_user_namespace=True,
    openat2=True,
    redirect_max=256,
    inotify_watches=1000,
    inotify_instances=128,
    trial=GOOD_TRIAL,
)
GOOD_FACTS = Facts(GOOD_HOST, one_file_system=False, upper_fstype="ext4", upper_trusted_xattrs=True)


def described(
    options: bytes = b"redirect_dir=on,metacopy=on", layers: bytes = b"lowerdir=/l,upperdir=/u,workdir=/w"
) -> Overlay:
    line = b"70 60 0:41 / /mnt/app rw,relatime - overlay overlay rw,%s,%s" % (layers, options)
    return overlay_of(parse(line)[0], ModuleDefaults())
