"""`python -m worker`: one worker process for one device."""

import logging
import os
import sys

from tandem.errors import ConfigurationError
from tandem.settings import WorkerSettings


def main() -> int:
    # OpenMP threads that spin while they wait slow a step 40 times when one other process runs (measured). It is read
    # when torch loads. `tandem up` and the image set it too; this is for a worker started by hand.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # One line a ticket says less than the executor's line a job.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)
    try:
        settings = WorkerSettings.read()
        # After the settings: a wrong one should not cost the seconds that torch takes to import.
        from worker.service import WorkerService

        service = WorkerService(settings)
    except ConfigurationError as error:
        print(f"tandem worker: {error.message}", file=sys.stderr)  # noqa: T201  # before there is a log to read
        return 2
    service.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
