"""llama.cpp's own C interface, called through the library inside the xllamacpp wheel.

The parameter structs change from build to build, so they are handled as opaque blobs,
larger than any of them: the library fills in its defaults and gets them back.
"""

import ctypes as C
from array import array

import xllamacpp

LIB = C.CDLL(xllamacpp.xllamacpp.__file__)
SOURCE = f"llama.cpp as carried by xllamacpp {xllamacpp.__version__}"


class Params(C.Structure):
    _fields_ = [("blob", C.c_uint8 * 2048)]


def declare(name, result, *args):
    function = getattr(LIB, name)
    function.restype, function.argtypes = result, args
    return function


_LOG = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
_silent = _LOG(lambda level, text, data: None)
declare("llama_log_set", None, _LOG, C.c_void_p)(_silent, None)
declare("llama_backend_init", None)()
_model_params = declare("llama_model_default_params", Params)
_load = declare("llama_model_load_from_file", C.c_void_p, C.c_char_p, Params)
_free = declare("llama_model_free", None, C.c_void_p)
_vocab = declare("llama_model_get_vocab", C.c_void_p, C.c_void_p)
_add_bos = declare("llama_vocab_get_add_bos", C.c_bool, C.c_void_p)
_bos = declare("llama_vocab_bos", C.c_int32, C.c_void_p)
_text = declare("llama_vocab_get_text", C.c_char_p, C.c_void_p, C.c_int32)
_count = declare("llama_vocab_n_tokens", C.c_int32, C.c_void_p)
_is_end = declare("llama_vocab_is_eog", C.c_bool, C.c_void_p, C.c_int32)
_tokenize = declare(
    "llama_tokenize", C.c_int32, C.c_void_p, C.c_char_p, C.c_int32, C.POINTER(C.c_int32), C.c_int32, C.c_bool, C.c_bool
)


class Model:
    def __init__(self, path, params=None):
        self.handle = _load(str(path).encode(), params or _model_params())
        if not self.handle:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocab = _vocab(self.handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _free(self.handle)

    @property
    def bos(self):
        """The id that is put before every text, or None."""
        return _bos(self.vocab) if _add_bos(self.vocab) else None

    def text(self, id):
        """A token as the vocabulary spells it."""
        return _text(self.vocab, id).decode()

    def ends(self):
        """The ids after which nothing is generated."""
        return [id for id in range(_count(self.vocab)) if _is_end(self.vocab, id)]

    def tokenize(self, text, add_special=True, parse_special=False):
        """Ids of `text` (bytes)."""
        ids = (C.c_int32 * (len(text) + 8))()
        n = _tokenize(self.vocab, text, len(text), ids, len(ids), add_special, parse_special)
        if n < 0:
            raise SystemExit("llama.cpp cannot tokenize this text")
        return array("i", ids[:n]).tolist()


class Vocabulary(Model):
    """A model's vocabulary without its weights."""

    # of the field `vocab_only`; a file without tensors does not load if it is elsewhere
    _AT = 72

    def __init__(self, path):
        params = _model_params()
        assert params.blob[self._AT] == 0
        params.blob[self._AT] = 1
        super().__init__(path, params)
