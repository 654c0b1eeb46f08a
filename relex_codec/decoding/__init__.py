"""From a step and a tier to the bits of its tensors. The path of a byte, from S3 to a weight:

1. plan: `planning` makes a `read_plan`: which ranges of file and base are read, in which order, and what for;
2. fetch: `fetching` has the planned ranges of remote files read ahead in large blocks, by `storage.prefetch`;
3. read: `origin_reader` and `direction_reader` ask for one planned entry after another, and check what they get;
4. decode: `tensor_decoder` makes jobs for a kernel of it, or hands it to the exact tier, and has the bits;
5. hand over: `tensors` makes tensors of the bits; `device_transfer` has the jobs decoded on a device.

The readers ask the same `Source` whether a file is local or remote: `PrefetchingSource` answers from the blocks. So the
third step is written once, and takes its ranges from the plan, which is all that the second one knows.
"""
