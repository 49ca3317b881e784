"""A pretrained encoder and a new head, from the command line.

Run it: ``python configs/argparse/train.py --freeze last:1 --freeze-mode regularized``
"""

import argparse

import bundles
from bundles.spec.mode import PRESETS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="WAV2VEC2_NANO_DIGITS", help="a name, an address or a pin")
    parser.add_argument("--freeze", default="encoder", help="a policy, as last:1; none for nothing")
    parser.add_argument("--freeze-mode", choices=PRESETS)
    parser.add_argument("--classes", type=int, default=11)
    given = parser.parse_args()
    head = {"type": "MeanPoolClassifier", "num_classes": given.classes}
    wanted = {"bundle": given.bundle, "freeze": given.freeze, "freeze_mode": given.freeze_mode, "head": head}
    try:
        model = bundles.from_config(wanted)
    except bundles.PinError as error:
        parser.error(str(error))
    print(bundles.freeze_report(model))
