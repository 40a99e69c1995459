#!/usr/bin/env python3
"""Train or evaluate on videos: python train_net_video.py --config-file configs/... ..."""

from rankseg_m2f.engine.main import run

if __name__ == "__main__":
    run()
