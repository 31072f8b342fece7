"""Could this code go on where the running supervisor stops?  Run by it before `reexec`, with the new interpreter.

    PYTHON -P -m quiesce.supervisor.preflight STATE_FD

Imports all that a supervisor imports, reads the state, and sees whether it would understand the workers;
prints one line of JSON, or a traceback.
"""

import json
import os
import sys


def main(argv: list[str]) -> int:
    """Exit status 0: yes."""
    import quiesce
    from quiesce.shared.messages import OLDEST_PROTOCOL, PROTOCOL
    from quiesce.supervisor import cli, cli_start, daemonize, main
    from quiesce.supervisor.core.releases import Release
    from quiesce.supervisor.core.snapshot import decode
    from quiesce.supervisor.settings_state import settings_from_json
    from quiesce.supervisor.state_store import StateStore

    store, payload = StateStore.adopt(os.dup(int(argv[1])))
    if payload is None:
        print("there is no whole state to read", file=sys.stderr)
        return 1
    snapshot = decode(payload)
    store.close()
    for settings in snapshot.settings:
        settings_from_json(settings, {})
    for generation in snapshot.generations:
        Release.from_json(generation.release)
        for worker in generation.workers:
            if worker.protocol < OLDEST_PROTOCOL or worker.oldest_protocol > PROTOCOL:
                name = f"{generation.release.get('id')}/{worker.number}"
                print(
                    f"worker {name} speaks protocol {worker.oldest_protocol} to {worker.protocol}, and quiesce "
                    f"{quiesce.__version__} understands {OLDEST_PROTOCOL} to {PROTOCOL}: replace the supervisor by "
                    "a version in between, bring the workers to that with `quiesce upgrade`, and then go on",
                    file=sys.stderr,
                )
                return 1
    loaded = [module.__name__ for module in (cli, cli_start, daemonize, main)]
    python = "{}.{}.{}".format(*sys.version_info[:3])
    print(json.dumps({"version": quiesce.__version__, "python": python, "loaded": loaded}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
