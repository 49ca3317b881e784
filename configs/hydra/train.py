"""A pretrained encoder and a new head, from a config of Hydra."""

import hydra
from omegaconf import DictConfig

import bundles


@hydra.main(version_base="1.3", config_path=".", config_name="train")
def main(config: DictConfig) -> None:
    """Build the model and say what trains in it."""
    if "_target_" in config.model:
        model = hydra.utils.instantiate(config.model)
    else:
        model = bundles.from_config(config.model)
    print(bundles.freeze_report(model))


if __name__ == "__main__":
    main()
