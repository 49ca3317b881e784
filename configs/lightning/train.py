"""Train a module of Lightning, which a config names and describes."""

from probe import Noise
from pytorch_lightning.cli import LightningCLI

if __name__ == "__main__":
    LightningCLI(datamodule_class=Noise, subclass_mode_model=True, save_config_callback=None)
