"""The stores of one process, made together from its settings."""

from dataclasses import dataclass

from tandem.adapter_aliases import AdapterAliases
from tandem.adapters import AdapterStore
from tandem.artifacts import ArtifactStore
from tandem.batch_store import BatchStore
from tandem.catalogue import Catalogue
from tandem.files import FileStore
from tandem.job_store import JobStore
from tandem.responses import ResponseStore
from tandem.settings import Settings
from tandem.submission import Submission
from tandem.uploads import UploadStore
from tandem.webhooks.endpoints import EndpointStore
from tandem.webhooks.events import WebhookEvents


@dataclass(frozen=True, slots=True)
class Services:
    catalogue: Catalogue
    artifacts: ArtifactStore
    jobs: JobStore
    files: FileStore
    adapters: AdapterStore
    submission: Submission
    batches: BatchStore
    responses: ResponseStore
    aliases: AdapterAliases
    uploads: UploadStore
    webhook_endpoints: EndpointStore
    webhook_events: WebhookEvents

    @classmethod
    def connect(cls, settings: Settings) -> "Services":
        """Open everything; Redis itself is reached at the first call."""
        catalogue = Catalogue.load(settings)
        artifacts = ArtifactStore(settings.artifacts_url)
        jobs = JobStore(settings, artifacts)
        files = FileStore(jobs, artifacts)
        adapters = AdapterStore(jobs, artifacts)
        aliases = AdapterAliases(jobs, catalogue, adapters)
        endpoints = EndpointStore(jobs)
        return cls(
            catalogue=catalogue,
            artifacts=artifacts,
            jobs=jobs,
            files=files,
            adapters=adapters,
            submission=Submission(catalogue, jobs, files, aliases, artifacts),
            batches=BatchStore(jobs),
            responses=ResponseStore(settings, jobs),
            aliases=aliases,
            uploads=UploadStore(jobs, artifacts),
            webhook_endpoints=endpoints,
            webhook_events=WebhookEvents(jobs, endpoints),
        )
