"""Pages and tables made from run folders."""

from __future__ import annotations

from jaxmix.report.pages.runs import (
    build_page as build_page,
    describe_result as describe_result,
    write_report as write_report,
)
from jaxmix.report.run_folder import RunRecord as RunRecord, find_runs as find_runs, load_run as load_run
