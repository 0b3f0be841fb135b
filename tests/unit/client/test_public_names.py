"""What `import tandem` gives, and what it costs."""

import subprocess
import sys

import tandem


def test_every_exported_name_is_there() -> None:
    assert {name for name in tandem.__all__ if not hasattr(tandem, name)} == set()
    assert tandem.__version__.count(".") == 2


def test_the_import_loads_no_library() -> None:
    """Each process of the service imports the package; only producers pay for the client."""
    code = "import sys, tandem; print(sorted({'httpx', 'pydantic', 'redis', 'rich'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_the_client_loads_neither_the_queue_nor_a_server() -> None:
    """A producer needs HTTP alone, and should not wait for the rest."""
    code = (
        "import sys, tandem; tandem.Tandem; "
        "print(sorted({'redis', 'celery', 'fsspec', 'torch', 'fastapi'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
