"""DICOM: parsing, headers, pixels, grey values, export."""
