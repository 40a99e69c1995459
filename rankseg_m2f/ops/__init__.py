from rankseg_m2f.ops.dispatch import ms_deform_attn

__all__ = ["ms_deform_attn"]
