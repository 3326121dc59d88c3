"""Many samples, models, pruners and seeds on dask.distributed: resumable, one trace store, one tidy table.

`config` reads the YAML file, `samples` and `benchmarks` what is asked, `plan` lists the jobs, `running` drives them on
a `cluster`, `worker` does them, `folder` and `tables` keep how far they are, `results` reads them, and `verdicts` takes
a language model's judgements in.
"""
