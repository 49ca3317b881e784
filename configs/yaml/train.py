"""A pretrained encoder and a new head, from a YAML file."""

from pathlib import Path

import yaml

import bundles

if __name__ == "__main__":
    config = yaml.safe_load(Path(__file__).with_name("train.yaml").read_text())
    model = bundles.from_config(config["model"])
    print(bundles.freeze_report(model))
