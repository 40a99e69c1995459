#!/usr/bin/env python3
"""Train or evaluate on images: python train_net.py --config-file configs/... [--eval-only] ..."""

from rankseg_m2f.engine.main import run

if __name__ == "__main__":
    run()
