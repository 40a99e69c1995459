#!/usr/bin/env python3
"""train_net.py under the name it has for videos in the official repositories; either does both."""

from rankseg_m2f.engine.main import run

if __name__ == "__main__":
    run()
