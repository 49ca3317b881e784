"""A pretrained encoder and a new head, from a config of HyperPyYAML, as SpeechBrain has them."""

from pathlib import Path

from hyperpyyaml import load_hyperpyyaml

import bundles

if __name__ == "__main__":
    with Path(__file__).with_name("train.yaml").open() as file:
        config = load_hyperpyyaml(file)
    print(bundles.freeze_report(config["model"]))
