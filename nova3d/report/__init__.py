"""Reports: one self-contained HTML file per run."""

from nova3d.report.page import write_report

__all__ = ["write_report"]
