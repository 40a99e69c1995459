"""Weight files written for a test."""

import pickle

import torch


def save_pth(path, content):
    torch.save(content, path)
    return str(path)


def save_pkl(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}
