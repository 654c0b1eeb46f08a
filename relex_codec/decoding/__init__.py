"""From a step and a tier to the bits of its tensors. The path of a byte:

1. plan: `read_plan.plan_reads` says which ranges of the file and of its base are read, in which order and what for;
2. fetch: `fetching.Fetcher` reads the planned ranges of remote files ahead, in large blocks (`storage.prefetch`);
3. read: `origin_reader` and `direction_reader` take each planned entry, from a block or from the local file, check its
   bytes, and make elements of the origin and packed directions of them;
4. decode: `tensor_decoder` hands them to a kernel, or to the exact tier, as jobs, and gets the bits of the weights;
5. hand over: `tensors` makes tensors of the bits; `device_transfer` decodes on a device instead of the CPU.
"""
