"""The header in which a synchronous door names its job, so that it can be looked up and cancelled."""

JOB_HEADER = "x-tandem-job"
