"""The stores of one process, made together from its settings."""

from dataclasses import dataclass

from tandem.adapters import AdapterStore
from tandem.artifacts import ArtifactStore
from tandem.catalogue import Catalogue
from tandem.files import FileStore
from tandem.job_store import JobStore
from tandem.settings import Settings
from tandem.submission import Submission


@dataclass(frozen=True, slots=True)
class Services:
    catalogue: Catalogue
    artifacts: ArtifactStore
    jobs: JobStore
    files: FileStore
    adapters: AdapterStore
    submission: Submission

    @classmethod
    def connect(cls, settings: Settings) -> "Services":
        """Open everything; Redis itself is reached at the first call."""
        catalogue = Catalogue.load(settings)
        artifacts = ArtifactStore(settings.artifacts_url)
        jobs = JobStore(settings, artifacts)
        files = FileStore(jobs, artifacts)
        adapters = AdapterStore(jobs, artifacts)
        return cls(
            catalogue, artifacts, jobs, files, adapters, Submission(catalogue, jobs, files, adapters, artifacts)
        )
