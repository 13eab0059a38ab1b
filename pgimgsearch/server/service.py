"""What both protocols offer: vectors of texts and images, from the loaded models."""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgimgsearch.concurrency import give_way
from pgimgsearch.embeddings.embed_query import Crop, cropped
from pgimgsearch.embeddings.loaded_model import CutText, LoadedModel, rejection_reason
from pgimgsearch.errors import UsageError
from pgimgsearch.models.encoder import SkippedImage
from pgimgsearch.server.batcher import MOST_WAITING, Batcher, Kind
from pgimgsearch.server.errors import BadImage, ModelNotServed, Refusal
from pgimgsearch.server.metrics import Metrics
from pgimgsearch.server.text_cache_writer import TextCache
from pgimgsearch.server.turns import Turns
from pgimgsearch.sources.decode import SLOW, decode_pixels, decoding_cost, limit_pixels
from pgimgsearch.sources.limits import DEFAULT_LIMITS
from pgimgsearch.sources.memory_budget import give_back

LONGEST_TEXT = 10_000  # characters, as in imgsearch._check_text
LARGEST_PICTURE = 64 << 20  # bytes, as in imgsearch._ask_for_image
LONGEST_FORM = 12_000  # the same, in a line of a template
MOST_FORMS = 4096  # texts in all lines of a template
MOST_TEMPLATE = 10_000_000  # characters of a template, times the texts
MOST_DECODED = 1_250_000_000  # bytes: 100 megapixels in most formats
MANY_PIXELS = 16_000_000  # such images are decoded one at a time, beside the others


class Service:
    """Models by name and alias, each network with its batcher; decodes on ``workers`` threads.

    ``loading`` is the name of a model that is about to be held.
    """

    def __init__(
        self, models: Sequence[LoadedModel], aliases: Mapping[str, str], cache: TextCache | None, metrics: Metrics,
        workers: int, most_waiting: int = MOST_WAITING,
    ) -> None:  # fmt: skip
        self.models: dict[str, LoadedModel] = {}
        self.aliases: dict[str, str] = {}
        self.loading: str | None = None
        self.metrics = metrics
        self._cache, self._most_waiting = cache, most_waiting
        self._batchers: dict[int, Batcher] = {}
        self.hold({model.stored.name: model for model in models}, aliases)
        self._decoders, self._large = Turns(workers, "decode"), Turns(1, "decode large", give_way)
        limit_pixels(DEFAULT_LIMITS.max_pixels)
        metrics.watch_queue(lambda: sum(batcher.waiting for batcher in self._batchers.values()))

    def hold(self, models: Mapping[str, LoadedModel], aliases: Mapping[str, str]) -> None:
        """Answer with these models from now on; those that go answer what waits for them."""
        before = self._batchers
        self._batchers = {
            id(model.encoder): before.get(id(model.encoder)) or self._start_batcher(model) for model in models.values()
        }
        self.models = dict(models)
        self.aliases = {alias: name for alias, name in aliases.items() if name in models}
        for key in before.keys() - self._batchers.keys():
            before[key].close()

    def find(self, name: str, fingerprint: str | None = None) -> LoadedModel:
        """A model by name or alias, of a fingerprint where one is given; raises ModelNotServed."""
        model = self.models.get(self.aliases.get(name, name))
        if model is None and name == self.loading:
            raise ModelNotServed(f"the embedder is loading model {name}", hint="try again in a moment")
        if model is None:
            raise ModelNotServed(
                f"the embedder does not hold model {name}",
                hint=f"it holds {', '.join(self.models) or 'none yet'}; to add it, point an alias at it: "
                f"pgimgsearch models alias ALIAS {name}; or start serve with --model {name} as well",
            )
        if fingerprint not in {None, model.stored.fingerprint}:
            raise ModelNotServed(f"the embedder holds another version of {name} than made the stored vectors",
                            hint="start it again: pgimgsearch serve, with the database of the vectors")  # fmt: skip
        return model

    async def embed_texts(
        self, model: LoadedModel, texts: Sequence[str], template: str = "{}", client: Hashable = None
    ) -> NDArray[np.float32]:  # fmt: skip
        """(n, dim) float32, normalised; they go into the cache. Raises Refusal, Busy or ModelError."""
        _check_texts(texts, template)
        try:
            outputs = await self._embedded(model, "text", model.text_forms(texts, template), client)
        except ValueError as error:  # of a tokenizer's library: "&#" and 5,000 digits
            raise Refusal(f"model {model.stored.name} cannot read the text: {error}", hint="use words") from error
        vectors = model.text_vectors(outputs["text"], len(texts))
        if self._cache is not None:
            self._cache.keep(model.stored, texts, vectors, template)
        else:
            self.metrics.count_texts("lost", len(texts))
        return vectors

    async def cut_texts(self, model: LoadedModel, texts: Sequence[str], template: str = "{}") -> list[CutText]:
        """Those that are longer than the model reads, one at a time, so that others come in between."""
        forms = model.long_forms(texts, template)
        return [cut for form in forms for cut in await asyncio.to_thread(model.cut_texts, [form])]

    async def embed_picture(
        self, model: LoadedModel, data: bytes, crop: Crop | None = None, *, normalize: bool | None = None,
        client: Hashable = None,
    ) -> NDArray[Any]:  # fmt: skip
        """(dim,) float32, or bits, 0 or 1, of an image's bytes. Raises BadImage, Refusal or Busy."""
        if len(data) > LARGEST_PICTURE:
            raise BadImage(f"the image has {len(data)} bytes, {LARGEST_PICTURE >> 20} MB is the limit",
                           hint="make it smaller; models look at a few hundred pixels")  # fmt: skip
        cost = await self._decoders.run(client, decoding_cost, data)
        if cost.bytes > MOST_DECODED:
            taken = f"{cost.bytes / 1e9:.1f} GB"
            raise BadImage(f"the image takes {taken} to decode, {MOST_DECODED / 1e9:g} GB is the limit",
                           hint="make it smaller; models look at a few hundred pixels")  # fmt: skip
        if cost.pixels > DEFAULT_LIMITS.max_pixels:
            most = DEFAULT_LIMITS.max_pixels / SLOW / 1e6
            raise BadImage(f"an image in this format takes long to decode, {most:g} megapixels are the limit",
                           hint="send it as JPEG or PNG")  # fmt: skip
        threads = self._large if cost.pixels > MANY_PIXELS else self._decoders
        prepared = await threads.run(client, self._prepare, model, data, crop)
        outputs = await self._embedded(model, "image", [prepared], client)
        if (reason := rejection_reason(model.storable(outputs)[0])) is not None:
            raise BadImage(f"the image has no useful vector: {reason}", hint="try another model")
        vector: NDArray[Any] = model.vectors(outputs, normalize=normalize)[0]
        return vector

    async def _embedded(
        self, model: LoadedModel, kind: Kind, inputs: Sequence[Any], client: Hashable
    ) -> dict[str, NDArray[Any]]:  # fmt: skip
        """Output -> (n, dim), in as many passes as it takes; those to come are left out once nobody waits."""
        answers = self._batcher(model).submit(kind, inputs, client)
        try:
            parts = await asyncio.gather(*map(asyncio.wrap_future, answers))
        except BaseException:
            for answer in answers:
                answer.cancel()
            answers.clear()  # their errors know this frame
            raise
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Answer what waits and end the threads."""
        self._decoders.close()
        self._large.close()
        for batcher in self._batchers.values():
            batcher.close()
        if self._cache is not None:
            self._cache.close()

    def _batcher(self, model: LoadedModel) -> Batcher:
        found = self._batchers.get(id(model.encoder))
        if found is None:
            raise ModelNotServed(f"the embedder no longer holds model {model.stored.name}", hint="ask again")
        return found

    def _start_batcher(self, model: LoadedModel) -> Batcher:
        watch = self.metrics.watcher(model.stored.name)
        return Batcher(model.encoder, model.batch_size, watch, self._most_waiting)

    def _prepare(self, model: LoadedModel, data: bytes, crop: Crop | None) -> NDArray[Any]:
        try:
            return model.encoder.prepare(cropped(decode_pixels(data), crop))
        except UsageError as error:
            refusal: Refusal = Refusal(str(error), hint=error.hint)
        except SkippedImage as why:
            refusal = BadImage(f"the image has no useful vector: {why}", hint="try another model")
        except Exception as error:  # broken bytes raise anything
            refusal = BadImage(f"the image cannot be read: {error}", hint="bring the content of an image file")
        del data
        give_back()
        try:
            raise refusal  # and not what led to it, whose frames hold the pixels
        finally:
            del refusal  # it knows this frame, too


def _check_texts(texts: Sequence[str], template: str) -> None:
    if not texts or not all(text.strip() for text in texts):
        raise Refusal("the text is empty", hint="give the words to look for")
    if (longest := max(map(len, texts))) > LONGEST_TEXT:
        raise Refusal(f"the text has {longest} characters, {LONGEST_TEXT} is the limit",
                      hint="models read the first few dozen words")  # fmt: skip
    try:
        "".join([*texts, template]).encode()
    except UnicodeEncodeError as error:
        raise Refusal("the text holds half a character", hint="send whole characters, in UTF-8") from error
    lines = template.count("\n") + 1
    if len(template) * len(texts) > MOST_TEMPLATE:
        raise Refusal(f"{len(texts)} texts in a template of {len(template)} characters are too much, "
                      f"{MOST_TEMPLATE} together is the limit", hint='write "a photo of a {}"')  # fmt: skip
    if (forms := max(lines, template.count("{}")) * len(texts)) > MOST_FORMS:
        raise Refusal(f"{len(texts)} texts in {lines} templates are {forms} to embed, {MOST_FORMS} is the limit",
                      hint="ask for fewer texts at once")  # fmt: skip
    for line in template.split("\n"):
        if (places := line.count("{}")) == 0:
            raise Refusal(f"the template has no place for the text: {line:.100}", hint='write "a photo of a {}"')
        if len(line) + places * longest > LONGEST_FORM:
            raise Refusal(
                f"a text in its template is longer than {LONGEST_FORM} characters, which is the limit",
                hint='write "a photo of a {}"',
            )
