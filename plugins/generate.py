"""Write the files of the plugins that are made from the one table of parameters: ``python plugins/generate.py``."""

import importlib
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    for suite in ("ccp4i2", "phenix"):
        for name, text in importlib.import_module(f"ml_phaser.suites.{suite}").generated().items():
            (HERE / suite / name).write_text(text, encoding="utf-8")
            print(HERE / suite / name)
