"""Pages and tables made from run folders."""

from __future__ import annotations

from jaxmix.report.pages.runs import build_page, describe_result, write_report
from jaxmix.report.run_folder import RunRecord, find_runs, load_run

__all__ = ["RunRecord", "build_page", "describe_result", "find_runs", "load_run", "write_report"]
