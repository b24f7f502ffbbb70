"""Files of TFRecords, written through the protocol buffers' own library and a checksum that goes bit by bit."""

import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from scoreflow.data import DataError, own, tfrecord
from scoreflow.data.kinds import open_source
from tests.test_records import CLASSES, COLORS, FILES, RNG, both, rows, wanted


def _messages():
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields, parent=file.message_type):
        out = parent.add(name=name)
        for number, (label, kind, title) in enumerate(fields, 1):
            typed = {"type_name": kind} if isinstance(kind, str) else {"type": kind}
            out.field.add(name=title, number=number, label=label, **typed)
        return out

    many, one = field.LABEL_REPEATED, field.LABEL_OPTIONAL
    message("BytesList", (many, field.TYPE_BYTES, "value"))
    message("FloatList", (many, field.TYPE_FLOAT, "value"))
    message("Int64List", (many, field.TYPE_INT64, "value"))
    message("Feature", (one, ".t.BytesList", "b"), (one, ".t.FloatList", "f"), (one, ".t.Int64List", "i"))
    features = message("Features", (many, ".t.Features.FeatureEntry", "feature"))
    entry = (one, field.TYPE_STRING, "key"), (one, ".t.Feature", "value")
    message("FeatureEntry", *entry, parent=features.nested_type).options.map_entry = True
    message("Example", (one, ".t.Features", "features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = _messages()


def example(**features) -> bytes:
    out = EXAMPLE()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        feature = out.features.feature[name.replace("__", "/")]
        kind = {bytes: feature.b, float: feature.f, int: feature.i}[type(values[0])]
        kind.value.extend(values)
    return out.SerializeToString()


def checksum(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32


def tfrecords(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for data in records:
            head = struct.pack("<Q", len(data))
            file.write(head + struct.pack("<I", checksum(head)) + data + struct.pack("<I", checksum(data)))
    return path


def glow(i):
    return example(shape=[8, 8, 3], data=COLORS[i].tobytes(), label=[CLASSES[i]], attr=[-1, 1] * 20)


def progan(i, step=1):
    image = COLORS[i, ::step, ::step].transpose(2, 0, 1)
    return example(shape=list(image.shape), data=np.ascontiguousarray(image).tobytes())


def imagenet(i):
    features = {"image__encoded": FILES[i], "image__class__label": 990 + CLASSES[i], "image__format": b"JPEG"}
    return example(**features, image__object__bbox__xmin=[0.25, 0.5])


NUMBERS = [str(label) for label in CLASSES]


def test_checksums_are_those_of_the_standard():
    """The vectors of RFC 3720, appendix B.4, and others bit by bit."""
    vectors = [bytes(32), b"\xff" * 32, bytes(range(32)), bytes(range(31, -1, -1)), b"123456789"]
    assert [tfrecord.crc32c(v) for v in vectors] == [0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0x113FDB5C, 0xE3069283]
    data = RNG.bytes(5000)
    for length in (0, 1, 255, 256, 257, 258, 259, 383, 384, 385, 512, 513, 1000, 4096, 5000):
        assert tfrecord.masked(tfrecord.crc32c(data[:length])) == checksum(data[:length])


def test_examples_are_those_that_the_protocol_buffers_library_writes():
    numbers = [0, 1, -1, 127, 128, 300, 2**31, -(2**31), 2**63 - 1, -(2**63)]
    floats = [0.5, -2.25, 1e30]
    data = example(numbers=numbers, floats=floats, words=[b"", b"a", bytes(300)], one=7)
    read = tfrecord.example(data, "a record")
    np.testing.assert_allclose(read.pop("floats"), np.float32(floats))
    assert read == {"numbers": numbers, "words": [b"", b"a", bytes(300)], "one": [7]}
    separate = b"\x0a\x0e\x0a\x0c\x0a\x01a\x12\x07\x1a\x05\x08\x05\x08\x96\x01"  # numbers that are not packed
    assert tfrecord.example(separate, "a record") == {"a": [5, 150]}
    for cut in range(1, len(data)):
        try:
            tfrecord.example(data[:cut], "a record")
        except DataError as error:
            assert "a record is no tf.train.Example: " in str(error)


@pytest.mark.parametrize(
    "record, names", [(glow, NUMBERS), (progan, None), (imagenet, [str(990 + c) for c in CLASSES])]
)
def test_tfrecords_of_celeba_hq_and_imagenet_are_read(tmp_path, record, names):
    tfrecords(tmp_path / "a-0.tfrecords", [record(i) for i in range(15)])
    tfrecords(tmp_path / "a-1.tfrecords", [record(i) for i in range(15, 40)])
    assert both(own.folder(tmp_path)) == wanted(range(40), names)
    assert both(own.folder(tmp_path / "a-0.tfrecords")) == wanted(range(15), names)
    assert both(own.folder(tmp_path, label="none")) == wanted(range(40))


@pytest.mark.parametrize(
    "train, test",
    [
        ("train/train-r03-s-0000-of-0001.tfrecords", "validation/validation-r03-s-0000-of-0001.tfrecords"),  # GLOW
        ("train-00000-of-00001", "validation-00000-of-00001"),  # TensorFlow's ImageNet
        ("set-train.tfrecord-00000-of-00001", "set-test.tfrecord-00000-of-00001"),  # TFDS
    ],
)
def test_splits_of_tfrecords_are_in_their_names(tmp_path, train, test):
    tfrecords(tmp_path / train, [glow(i) for i in range(30)])
    tfrecords(tmp_path / test, [glow(i) for i in range(30, 40)])
    dataset = own.folder(tmp_path)
    assert rows(dataset) == [wanted(range(30), NUMBERS), wanted(range(30, 40), NUMBERS)]


def test_of_several_resolutions_the_one_that_is_enough_is_read(tmp_path, capsys):
    for level in (1, 2, 3):
        tfrecords(tmp_path / f"hq-r{level:02d}.tfrecords", [progan(i, 2 ** (3 - level)) for i in range(20)])
    for size, side in ((0, 8), (2, 2), (3, 4), (4, 4), (8, 8), (16, 8)):
        source = open_source(tmp_path, image_size=size)
        np.testing.assert_array_equal(source.read(5).content, COLORS[5, :: 8 // side, :: 8 // side])
    assert both(own.folder(tmp_path)) == wanted(range(20))
    assert "files of 8 x 8 pixels are read, other resolutions left out" in capsys.readouterr().out


def test_tfrecords_that_do_not_fit_are_one_line(tmp_path):
    records = [glow(i) for i in range(20)]
    path = tfrecords(tmp_path / "a.tfrecords", records)
    whole = path.read_bytes()
    size = len(records[0]) + 16
    for cut in (size * 3 + 5, size * 3 + 40, size * 4 - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.tfrecords is cut short in record 3"):
            own.folder(path)
    for place, words in (
        (size * 2 + 1, "record 2 is damaged: its length"),
        (size * 2 + 90, "record 2 is damaged: it does"),
    ):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DataError, match=rf"a\.tfrecords:? {words}"):
            own.folder(path)
    tfrecords(path, [example(name=b"x")] * 3)
    with pytest.raises(DataError, match="a.tfrecords record 0 has name; none of image/encoded, data"):
        own.folder(path)
    tfrecords(path, [example(shape=[9, 8, 3], data=COLORS[0].tobytes())] * 3)
    with pytest.raises(DataError, match=r"a.tfrecords record 0 has 192 bytes of shape \(9, 8, 3\)"):
        own.folder(path)
    path.write_bytes(b"\x1f\x8b\x08" + bytes(50))
    with pytest.raises(DataError, match="a.tfrecords is compressed; unpack it with gunzip"):
        own.folder(path)
    tfrecords(path, records)
    with pytest.raises(DataError, match="data.label = size: a.tfrecords record 0 has attr, data, label, shape"):
        own.folder(path, label="size")
