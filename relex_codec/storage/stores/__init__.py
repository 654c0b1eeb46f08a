"""Stores: single requests to storage, one attempt each, which also say what version of the object an answer is of.

S3, HTTP, Google Cloud Storage and Azure are asked through the connections of s3fs, of fsspec's HTTP filesystem, of
gcsfs and of adlfs, models on the Hub through the session of huggingface_hub (see hub/client.py), but without their
``cat_ranges``: that gives bytes only, while an answer also has size and version of the object, and can be made to
depend on them. So opening needs no request for metadata, and an object that was replaced is noticed. All other
filesystems are read through their ``cat_ranges`` and looked at before and after (fsspec_store.py).

To add a store:

1. Write ``stores/<name>.py`` with a subclass of `base.ObjectStore`; s3.py is a short one to start from. ``get`` asks
   for one range, with a condition on the version if one is given, checks with `base.object_size` that the answer is one
   to that range, and returns the bytes with their `base.ObjectVersion`. ``head`` asks for size and version alone.
   ``listing`` may list a directory, where fsspec's own way does not show it as it is now.
2. Do not retry, wait or log. Raise what the library raises; `base.raise_for_condition` turns 412 and 416 into what they
   mean, and `base.RequestRefused` carries status, message and code of any other refusal. Which failures are transient,
   and what messages say, is decided in failures.py and explain.py: look whether they know this library's exceptions.
3. Set ``has_versions``; switch the library's own retries off, or else set ``retries_internally``. Take timeouts from
   ``self.config``. Run coroutines with ``self._run``, blocking calls with `run_abandonable`: both can be cancelled.
4. Let `registry.store_for` choose it, only if the installed release of the library has all that the store calls.
5. Add a server for it to tests/support/servers and its name to ``LIBRARIES`` there: tests/storage/test_cloud_*.py then
   run on it.
"""
