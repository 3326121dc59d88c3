"""Many samples, models, pruners and seeds on dask.distributed: resumable, one trace store, one tidy table.

`config` reads the YAML file, `plan` lists the jobs, `running` drives them, `worker` does them, `results` reads them.
"""
