"""The table of kinds is current, and holds what was reported of the field."""

from kinds_table import HERE, MODULES, README, table

# Folders of ../shared/cases -> kinds; those of programs' flags have tests beside the programs.
CASES = {
    "annotation_id_zero": ("annotation_id_zero", "instances_beside_count_from_zero"),
    "binary_0_255": ("binary_0_255", "label_hidden_by_the_ignore_label"),
    "duplicate_segment_ids": ("segment_ids_twice", "segment_twice_with_other_category"),
    "flat_polygon": ("polygon_flat", "polygons_flat_all", "polygon_too_deep", "polygon_of_points"),
    "huge_polygon": ("polygon_far_corner", "polygon_nan", "polygon_corner_1e30"),
    "image_ids_as_text": ("image_ids_are_text_in_annotations", "image_ids_are_text"),
    "json_with_bom": ("json_with_bom", "yaml_with_bom", "json_utf_16"),
    "jupyter_checkpoints": ("jupyter_checkpoints_in_images", "synology_eadir_in_images"),
    "jupyter_checkpoints_in_both": ("jupyter_checkpoints_in_both", "git_folder_in_both"),
    "list_with_bom": ("list_with_bom", "list_from_windows_with_bom", "videos_list_with_bom"),
    "list_with_endings": ("list_with_endings", "list_names_twice_with_ending"),
    "masks_are_bmp": ("maps_bmp", "maps_jpg", "maps_tif"),
    "masks_beside_photos": ("photos_and_maps_in_one_folder", "photo_in_two_formats"),
    "normalized_polygons": ("polygon_normalized", "polygons_normalized_all", "polygon_outside"),
    "panoptic_annotation_twice": ("image_annotated_twice",),
    "rle_bytes_text": ("rle_bytes_as_text", "rle_bytes_as_text_all", "rle_garbage"),
    "same_photo_under_two_ids": ("same_photo_under_two_ids", "same_photo_in_two_spellings"),
    "segments_info_null": ("segments_info_null", "segments_info_missing"),
    "sizes_null": ("sizes_null", "size_text", "size_swapped"),
    "thin_photo": ("photo_of_one_row", "photo_of_one_column", "photo_of_one_pixel"),
    "two_labels_of_one_name": ("two_categories_of_one_name",),
    "video_rle_too_short": ("rle_too_short", "rle_too_short_all"),
    "zero_is_unlabelled": ("ignore_0_offset_1", "offset_1"),
}


def test_readme_is_current():
    assert README.read_text(encoding="utf-8") == table(), f"run python {HERE}/kinds_table.py"


def test_every_module_is_in_the_table():
    found = {path.stem for path in HERE.glob("test_kinds_*.py")} - {"test_kinds_table"}
    assert found == set(MODULES)


def test_reported_cases_have_kinds():
    text = README.read_text(encoding="utf-8")
    missing = [k for kinds in CASES.values() for k in kinds if f"| {k} |" not in text]
    assert not missing
