"""`GET /metrics`: queues, workers, models and batches, in Prometheus' text format."""

from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api.auth import FORBIDDEN, OPERATORS_ONLY, bearer
from api.dependencies import ServicesDep
from tandem.job_reads import LaneStatus
from tandem.workers import WorkerInfo, WorkerRegistry

router = APIRouter(tags=["health"], dependencies=[Depends(bearer), OPERATORS_ONLY], responses=FORBIDDEN)


@router.get("/metrics", response_class=Response)
def metrics(services: ServicesDep) -> Response:
    """What is queued, which workers live, which models they hold, and what their batches do: rows and their wait.

    Needs an operator's key, since it tells of all owners' jobs: give it to Prometheus as
    `authorization: {credentials: …}`.
    """
    registry = CollectorRegistry()
    registry.register(_Snapshot(services.jobs.counts(), services.jobs.lanes(), WorkerRegistry(services.jobs).list()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Snapshot(Collector):
    """The service at one moment. The counters are the workers' own: they begin anew with a worker or its model."""

    def __init__(self, states: dict[str, int], lanes: Iterable[LaneStatus], workers: Iterable[WorkerInfo]) -> None:
        self._states, self._lanes, self._workers = states, lanes, workers

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("tandem_jobs", "Jobs that the queue knows, by state", labels=["state"])
        for state, count in self._states.items():
            jobs.add_metric([state], count)
        yield jobs
        ready = GaugeMetricFamily("tandem_lane_ready_jobs", "Jobs that a worker could begin now", labels=["lane"])
        for lane in self._lanes:
            ready.add_metric([lane.lane], lane.ready)
        yield ready
        running = GaugeMetricFamily(
            "tandem_worker_running_jobs", "Attempts that a worker executes", labels=["worker"]
        )
        trained = CounterMetricFamily(
            "tandem_worker_training_seconds", "Time that trainings have held the device", labels=["worker"]
        )
        quantum = GaugeMetricFamily(
            "tandem_worker_training_quantum_seconds", "Their longest turn while serving waits", labels=["worker"]
        )
        for worker in self._workers:
            running.add_metric([worker.id], worker.running)
            trained.add_metric([worker.id], worker.trained_seconds)
            quantum.add_metric([worker.id], worker.quantum_seconds)
        yield from (running, trained, quantum)
        yield from self._models()

    def _models(self) -> Iterator[Metric]:
        where = ["worker", "model", "task"]
        held = GaugeMetricFamily(
            "tandem_resident_model_bytes",
            "A model in a worker's memory: weights, their copies, keys and values, adapters",
            labels=where,
        )
        batches = CounterMetricFamily("tandem_batches", "Forward passes over batches of rows", labels=where)
        rows = CounterMetricFamily("tandem_batch_rows", "Rows in them", labels=where)
        cost = CounterMetricFamily("tandem_batch_cost", "Their tokens, pixels or samples", labels=[*where, "unit"])
        padded = CounterMetricFamily("tandem_batch_padded_cost", "The same with padding", labels=[*where, "unit"])
        wait = CounterMetricFamily("tandem_batch_wait_seconds", "Sum of the rows' waits for their pass", labels=where)
        for worker in self._workers:
            for model in worker.models:
                held.add_metric([worker.id, model.name, model.task], model.bytes)
                for work in model.work:
                    labels = [worker.id, model.name, work.task]
                    batches.add_metric(labels, work.batches)
                    rows.add_metric(labels, work.rows)
                    cost.add_metric([*labels, work.unit], work.cost)
                    padded.add_metric([*labels, work.unit], work.padded_cost)
                    wait.add_metric(labels, work.wait_seconds)
        yield from (held, batches, rows, cost, padded, wait)
        yield from self._engines()

    def _engines(self) -> Iterator[Metric]:
        where = ["worker", "model"]
        gauges: dict[str, GaugeMetricFamily] = {
            "slots": GaugeMetricFamily("tandem_engine_slots", "Sequences that can run together", labels=where),
            "running": GaugeMetricFamily("tandem_engine_running_sequences", "Sequences with a slot", labels=where),
            "waiting": GaugeMetricFamily("tandem_engine_waiting_sequences", "Sequences without one", labels=where),
            "kv_bytes": GaugeMetricFamily("tandem_engine_kv_bytes", "Memory of the keys and values", labels=where),
        }
        counters: dict[str, CounterMetricFamily] = {
            "steps": CounterMetricFamily("tandem_engine_steps", "Forward passes", labels=where),
            "sequences": CounterMetricFamily("tandem_engine_sequences", "Sequences admitted", labels=where),
            "prompt_tokens": CounterMetricFamily("tandem_engine_prompt_tokens", "Their prompts", labels=where),
            "reused_tokens": CounterMetricFamily(
                "tandem_engine_reused_tokens", "Prompt tokens whose keys and values were there already", labels=where
            ),
            "generated_tokens": CounterMetricFamily(
                "tandem_engine_generated_tokens", "Tokens generated", labels=where
            ),
            "wait_seconds": CounterMetricFamily(
                "tandem_engine_wait_seconds", "Sum of the sequences' waits for a slot", labels=where
            ),
            "parked": CounterMetricFamily(
                "tandem_engine_parked", "Times that a sequence gave its slot to a more urgent one", labels=where
            ),
            "adapter_loads": CounterMetricFamily(
                "tandem_engine_adapter_loads", "Adapters copied into a slot of the bank", labels=where
            ),
        }
        for worker in self._workers:
            for model in worker.models:
                if model.engine is not None:
                    figures = model.engine.model_dump()
                    for field, gauge in gauges.items():
                        gauge.add_metric([worker.id, model.name], figures[field])
                    for field, counter in counters.items():
                        counter.add_metric([worker.id, model.name], figures[field])
        yield from (*gauges.values(), *counters.values())
