from rankseg_m2f.ops.dispatch import ms_deform_attn, ms_deform_attn_from_offsets

__all__ = ["ms_deform_attn", "ms_deform_attn_from_offsets"]
