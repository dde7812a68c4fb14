"""Reading of media files: what is in them, and timed pictures and sound from them, whatever state they are in.

`probe.probe` and `decoding.decode` work in this process and need PyAV; `child.DecodeChild` and `child.decode_in_child`
do the same in a child process and import PyAV only there.
"""

from avtool.media.request import DecodeReport, DecodeRequest, Item, Limits, Picture, PictureSpec, Progress, Sound

__all__ = ["DecodeReport", "DecodeRequest", "Item", "Limits", "Picture", "PictureSpec", "Progress", "Sound"]
