"""``promoterd run``."""

import asyncio

from promoterd import log
from promoterd.cli.privilege import require_privilege
from promoterd.cli.settings import DEFAULT_CONFIG, read_policy
from promoterd.daemon import Daemon


def run_daemon(config: str | None) -> None:
    """Until SIGTERM. Raises PolicyError, NotPermitted, and whatever keeps the daemon from starting.

    The end joins no thread: those that touch mounts are daemon threads, and one may hang in NFS for ever.
    """
    require_privilege()
    policy = read_policy(config)
    log.configure(policy.log.format, policy.log.level)
    logger = log.get_logger("promoterd")
    for doubt in policy.warnings:
        logger.warning("policy_doubt", reason=doubt)
    asyncio.run(Daemon(config or DEFAULT_CONFIG, policy, logger).run())
