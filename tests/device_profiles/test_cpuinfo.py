import string

from edgelm_device_profiles import ISA_FEATURES, isa_features, parse_cpuinfo
from hypothesis import given
from hypothesis import strategies as st

# In the form that a Raspberry Pi 5 prints, two of its cores, serial number replaced.
PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

processor\t: 1
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Revision\t: d04170
Serial\t\t: 0000000000000000
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""

PHONE = """processor\t: 0
Features\t: fp asimd asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd46

processor\t: 1
Features\t: fp asimd asimdhp asimddp i8mm bf16 sve2
CPU implementer\t: 0x41
CPU part\t: 0xd4e

processor\t: 2
Features\t: fp asimd asimdhp asimddp i8mm bf16 sve2
CPU implementer\t: 0x51
CPU part\t: 0x001
"""

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) N100
flags\t\t: fpu sse2 hypervisor avx f16c fma avx2 avx_vnni

processor\t: 1
model name\t: Intel(R) N100
flags\t\t: fpu sse2 hypervisor avx f16c fma avx2 avx_vnni
"""

ARMV7 = """processor\t: 0
model name\t: ARMv7 Processor rev 3 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU implementer\t: 0x41
CPU part\t: 0xd08
"""


def test_raspberry_pi_5():
    info = parse_cpuinfo(PI_5)
    assert info.model_name == "2x Arm Cortex-A76"
    assert info.board_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert info.processors == 2
    assert info.isa == ("neon", "fp16", "dotprod")
    assert "Serial" not in repr(info)
    assert "0000000000000000" not in repr(info)


def test_a_feature_counts_only_where_every_core_has_it():
    info = parse_cpuinfo(PHONE)
    assert info.isa == ("neon", "fp16", "dotprod", "i8mm", "bf16")
    assert info.model_name == "1x Arm Cortex-A510 + 1x Arm Cortex-X3 + 1x implementer 0x51 part 0x001"


def test_x86():
    info = parse_cpuinfo(X86)
    assert (info.model_name, info.processors, info.board_model) == ("Intel(R) N100", 2, None)
    assert info.isa == ("avx", "f16c", "fma", "avx2", "avx_vnni")
    assert "hypervisor" in info.flags


def test_the_part_number_is_better_than_the_model_name_of_a_32_bit_kernel():
    info = parse_cpuinfo(ARMV7)
    assert info.model_name == "1x Arm Cortex-A72"
    assert info.isa == ("neon",)


def test_an_unreadable_part_is_shown_as_it_is():
    info = parse_cpuinfo("CPU implementer\t: ?\nCPU part\t: odd\n")
    assert info.model_name == "1x implementer ? part odd"


def test_nothing_is_known_of_an_empty_file():
    info = parse_cpuinfo("")
    assert (info.model_name, info.board_model, info.processors, info.isa) == (None, None, 0, ())


@given(st.text(alphabet=string.printable))
def test_any_text_is_parsed(text):
    info = parse_cpuinfo(text)
    assert info.processors >= 0
    assert set(info.isa) <= set(ISA_FEATURES)


@given(st.sets(st.sampled_from(["asimd", "asimddp", "avx2", "avx512_vnni", "sse2"])))
def test_features_keep_the_order_of_the_list(flags):
    features = isa_features(flags)
    assert list(features) == sorted(features, key=ISA_FEATURES.index)
    assert len(features) == len(flags - {"sse2"})
