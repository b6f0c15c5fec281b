"""The table of cards: memory and rates as makers publish them, row by row, with the document each figure is from."""

Row = tuple[str, int, float, float, float, str, str]

TURING = "NVIDIA Turing GPU architecture whitepaper, table 1 and appendices, reference clocks"
AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper V2, tables of the GeForce cards"
AMPERE_PRO = "NVIDIA Ampere GA102 GPU architecture whitepaper V2, appendix C"
ADA = "NVIDIA Ada GPU architecture whitepaper V2, appendix A"
BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper, appendices"
# Where only cores and clocks are published. From Turing to Blackwell a multiprocessor's tensor cores do 2048 int8
# operations a clock, and 1024 with fp16, or 512 where GeForce cards sum in float32 (tests/test_cards.py has the clocks).
GEFORCE = "NVIDIA GeForce product page; rates computed: multiprocessors x boost clock x 2048 (int8), 512 (fp16)"
PRO = "NVIDIA product page; rates computed: multiprocessors x boost clock x 2048 (int8), 1024 (fp16)"
TITAN = "NVIDIA TITAN RTX product page, 130 tensor TFLOPS, which it reaches with float32 sums; int8 is twice that"
# Datasheets that print one tensor rate only, and that with sparsity.
RTX_AMPERE = "NVIDIA RTX datasheet; its tensor rate is fp16 with sparsity: fp16 is half of it, int8 twice that"
RTX_ADA = "NVIDIA RTX datasheet; its tensor rate is FP8 with sparsity: int8 is half of it, fp16 a quarter"
GTX1080TI = "NVIDIA GTX 1080 Ti product page; no tensor cores: int8 is dp4a, fp16 is fp32, cores x boost clock"
P40 = "NVIDIA Tesla P40 datasheet; no tensor cores: int8 is dp4a, fp16 is fp32"
V100 = "NVIDIA V100 datasheet, PCIe; no int8 tensor cores: int8 is dp4a, cores x boost clock"
V100_SXM2 = "NVIDIA V100 datasheet, SXM2; no int8 tensor cores: int8 is dp4a, cores x boost clock"
LAPTOP = (
    "NVIDIA GeForce laptop page: cores, memory, and a range of boost clocks, which the maker of a laptop chooses from; rates "
    "computed: multiprocessors x lowest boost clock x 2048 (int8), 512 (fp16)"
)
H100_PCIE, H100_NVL = (
    "NVIDIA H100 datasheet, PCIe, halves of the rates with sparsity",
    "NVIDIA H100 datasheet, NVL, halved",
)
# Memory in GiB ("24 GB" of a card are 24 x 2^30 bytes), GB/s, int8 and fp16 in 10^12 operations/s, slot, source.
# Of cards of one name and several memories, the first is what the bare name means.
# fmt: off
NVIDIA: tuple[Row, ...] = (
    ("GTX1080Ti",         11,  484,   45.4,  11.3, "pcie3x16", GTX1080TI),
    ("RTX2060-6GB",        6,  336,    103,  25.8, "pcie3x16", GEFORCE),
    ("RTX2060-12GB",      12,  336,    115,  28.7, "pcie3x16", GEFORCE),
    ("RTX2060Super",       8,  448,    115,  28.7, "pcie3x16", GEFORCE),
    ("RTX2070",            8,  448,  119.4,  29.9, "pcie3x16", TURING),
    ("RTX2070Super",       8,  448,    145,  36.2, "pcie3x16", GEFORCE),
    ("RTX2080",            8,  448,  161.1,  40.3, "pcie3x16", TURING),
    ("RTX2080Super",       8,  496,    178,  44.6, "pcie3x16", GEFORCE),
    ("RTX2080Ti",         11,  616,  215.2,  53.8, "pcie3x16", TURING),
    ("TITANRTX",          24,  672,    261, 130.5, "pcie3x16", TITAN),
    ("QuadroRTX6000",     24,  672,    261, 130.5, "pcie3x16", TURING),
    ("RTX8000",           48,  672,    261, 130.5, "pcie3x16", "NVIDIA Quadro RTX 8000 datasheet"),
    ("RTX3050-8GB",        8,  224,   72.8,  18.2,  "pcie4x8", GEFORCE),
    ("RTX3060-12GB",      12,  360,    102,  25.5, "pcie4x16", GEFORCE),
    ("RTX3060-8GB",        8,  240,    102,  25.5, "pcie4x16", GEFORCE),
    ("RTX3060Ti",          8,  448,    130,  32.4, "pcie4x16", GEFORCE),
    ("RTX3070",            8,  448,  162.6,  40.6, "pcie4x16", AMPERE),
    ("RTX3070Ti",          8,  608,    174,  43.5, "pcie4x16", GEFORCE),
    ("RTX3080-10GB",      10,  760,    238,  59.5, "pcie4x16", AMPERE),
    ("RTX3080-12GB",      12,  912,    245,  61.3, "pcie4x16", GEFORCE),
    ("RTX3080Ti",         12,  912,    273,  68.2, "pcie4x16", GEFORCE),
    ("RTX3090",           24,  936,    284,    71, "pcie4x16", AMPERE),
    ("RTX3090Ti",         24, 1008,    320,    80, "pcie4x16", ADA),
    ("RTX4060",            8,  272,    121,  30.2,  "pcie4x8", GEFORCE),
    ("RTX4060Ti-8GB",      8,  288,    177,  44.1,  "pcie4x8", GEFORCE),
    ("RTX4060Ti-16GB",    16,  288,    177,  44.1,  "pcie4x8", GEFORCE),
    ("RTX4070",           12,  504,    233,  58.3, "pcie4x16", GEFORCE),
    ("RTX4070Super",      12,  504,    284,    71, "pcie4x16", GEFORCE),
    ("RTX4070Ti",         12,  504,    321,  80.2, "pcie4x16", GEFORCE),
    ("RTX4070TiSuper",    16,  672,    353,  88.2, "pcie4x16", GEFORCE),
    ("RTX4080",           16, 716.8, 389.9,  97.5, "pcie4x16", ADA),
    ("RTX4080Super",      16,  736,    418,   104, "pcie4x16", GEFORCE),
    ("RTX4090",           24, 1008,  660.6, 165.2, "pcie4x16", ADA),
    ("RTX5060",            8,  448,    153,  38.4,  "pcie5x8", GEFORCE),
    ("RTX5060Ti-16GB",    16,  448,    190,  47.4,  "pcie5x8", GEFORCE),
    ("RTX5060Ti-8GB",      8,  448,    190,  47.4,  "pcie5x8", GEFORCE),
    ("RTX5070",           12,  672,  246.9,  61.7, "pcie5x16", BLACKWELL),
    ("RTX5070Ti",         16,  896,  351.5,  87.9, "pcie5x16", BLACKWELL),
    ("RTX5080",           16,  960,  450.2, 112.6, "pcie5x16", BLACKWELL),
    ("RTX5090",           32, 1792,    838, 209.5, "pcie5x16", BLACKWELL),
    # Of laptops: eight lanes, which is what most of them wire.
    ("RTX3050Laptop",      4,  192,   34.6,   8.7,  "pcie4x8", LAPTOP),
    ("RTX3050TiLaptop",    4,  192,   42.4,  10.6,  "pcie4x8", LAPTOP),
    ("RTX3060Laptop",      6,  336,   78.8,  19.7,  "pcie4x8", LAPTOP),
    ("RTX3070Laptop",      8,  448,  105.7,  26.4,  "pcie4x8", LAPTOP),
    ("RTX3070TiLaptop",    8,  448,   97.5,  24.4,  "pcie4x8", LAPTOP),
    ("RTX3080Laptop-8GB",  8,  448,  122.4,  30.6,  "pcie4x8", LAPTOP),
    ("RTX3080Laptop-16GB",16,  448,  122.4,  30.6,  "pcie4x8", LAPTOP),
    ("RTX3080TiLaptop",   16,  512,  133.6,  33.4,  "pcie4x8", LAPTOP),
    ("RTX4050Laptop",      6,  192,   65.7,  16.4,  "pcie4x8", LAPTOP),
    ("RTX4060Laptop",      8,  256,   72.3,  18.1,  "pcie4x8", LAPTOP),
    ("RTX4070Laptop",      8,  256,   90.7,  22.7,  "pcie4x8", LAPTOP),
    ("RTX4080Laptop",     12,  432,  160.4,  40.1,  "pcie4x8", LAPTOP),
    ("RTX4090Laptop",     16,  576,  226.5,  56.6,  "pcie4x8", LAPTOP),
    ("RTXA2000-12GB",     12,  288,   63.9,  31.9, "pcie4x16", RTX_AMPERE),
    ("RTXA2000-6GB",       6,  288,   63.9,  31.9, "pcie4x16", RTX_AMPERE),
    ("RTXA4000",          16,  448,  153.4,  76.7, "pcie4x16", RTX_AMPERE),
    ("RTXA4500",          20,  640,  189.2,  94.6, "pcie4x16", RTX_AMPERE),
    ("RTXA5000",          24,  768,  222.2, 111.1, "pcie4x16", RTX_AMPERE),
    ("RTXA6000",          48,  768,  309.7, 154.8, "pcie4x16", AMPERE_PRO),
    ("RTX4000SFFAda",     20,  280,  153.4,  76.7, "pcie4x16", RTX_ADA),
    ("RTX4000Ada",        20,  360,  163.8,  81.9, "pcie4x16", RTX_ADA),
    ("RTX4500Ada",        24,  432,    317, 158.5, "pcie4x16", RTX_ADA),
    ("RTX5000Ada",        32,  576,  522.2, 261.1, "pcie4x16", RTX_ADA),
    ("RTX6000Ada",        48,  960,  728.5, 364.2, "pcie4x16", RTX_ADA),
    ("RTXPRO6000",        96, 1792,   1008,   504, "pcie5x16", PRO),
    ("RTXPRO6000MaxQ",    96, 1792,    878,   439, "pcie5x16", PRO),
    ("P40",               24,  346,     47,  11.8, "pcie3x16", P40),
    ("V100-16GB",         16,  900,   56.5,   112, "pcie3x16", V100),
    ("V100-32GB",         32,  900,   56.5,   112, "pcie3x16", V100),
    ("V100-SXM2-16GB",    16,  900,   62.7,   125, "pcie3x16", V100_SXM2),
    ("V100-SXM2-32GB",    32,  900,   62.7,   125, "pcie3x16", V100_SXM2),
    ("T4",                16,  320,    130,    65, "pcie3x16", "NVIDIA T4 datasheet"),
    ("A10",               24,  600,    250,   125, "pcie4x16", "NVIDIA A10 datasheet"),
    ("A10G",              24,  600,    140,    70, "pcie4x16", "NVIDIA A10G datasheet"),
    ("A30",               24,  933,    330,   165, "pcie4x16", "NVIDIA A30 datasheet"),
    ("A40",               48,  696,  299.3, 149.7, "pcie4x16", "NVIDIA A40 datasheet"),
    ("L4",                24,  300,  242.5,   121, "pcie4x16", "NVIDIA L4 datasheet, halves of the rates with sparsity"),
    ("L40",               48,  864,    362,   181, "pcie4x16", "NVIDIA L40 datasheet"),
    ("L40S",              48,  864,    733,   362, "pcie4x16", "NVIDIA L40S datasheet"),
    ("A100-40GB",         40, 1555,    624,   312, "pcie4x16", "NVIDIA A100 datasheet, 40 GB"),
    ("A100-80GB",         80, 2039,    624,   312, "pcie4x16", "NVIDIA A100 datasheet, 80 GB SXM"),
    ("A100-PCIE-80GB",    80, 1935,    624,   312, "pcie4x16", "NVIDIA A100 datasheet, 80 GB PCIe"),
    ("H100-80GB",         80, 3350,   1979, 989.5, "pcie5x16", "NVIDIA H100 datasheet, SXM, halves of the rates with sparsity"),
    ("H100-PCIE-80GB",    80, 2000,   1513, 756.5, "pcie5x16", H100_PCIE),
    ("H100-NVL-94GB",     94, 3900, 1670.5, 835.5, "pcie5x16", H100_NVL),
    ("H200",             141, 4800,   1979, 989.5, "pcie5x16", "NVIDIA H200 datasheet, SXM, halves of the rates with sparsity"),
    ("H200-NVL",         141, 4800, 1670.5, 835.5, "pcie5x16", "NVIDIA H200 datasheet, NVL, halves of the rates with sparsity"),
)

# AMD states rates of its matrix instructions, or what gives them: operations a clock of a compute unit (RDNA 2: 512 with
# int8, 256 with fp16; RDNA 3: 512 with both; RDNA 4: 2048 and 1024), of which there are so many, at the boost clock.
RDNA = (
    "AMD product page; rates computed: compute units x boost clock x 512 (RDNA 4: 2048) with int8, 256, 512 or 1024 (RDNA 2, "
    "3, 4) with fp16"
)
AMD: tuple[Row, ...] = (
    ("RX6800",            16,  512,   64.7,  32.3, "pcie4x16", RDNA),
    ("RX6800XT",          16,  512,   82.9,  41.5, "pcie4x16", RDNA),
    ("RX6900XT",          16,  512,   92.2,  46.1, "pcie4x16", RDNA),
    ("RX6950XT",          16,  576,   94.6,  47.3, "pcie4x16", RDNA),
    ("RX7600",             8,  288,   43.5,  43.5,  "pcie4x8", RDNA),
    ("RX7600XT",          16,  288,   45.1,  45.1,  "pcie4x8", RDNA),
    ("RX7700XT",          12,  432,   70.3,  70.3, "pcie4x16", RDNA),
    ("RX7800XT",          16,  624,   74.6,  74.6, "pcie4x16", RDNA),
    ("RX7900GRE",         16,  576,     92,    92, "pcie4x16", RDNA),
    ("RX7900XT",          20,  800,  103.2, 103.2, "pcie4x16", RDNA),
    ("RX7900XTX",         24,  960,  122.9, 122.9, "pcie4x16", RDNA),
    ("RX9070",            16,  640,    289, 144.5, "pcie5x16", RDNA),
    ("RX9070XT",          16,  640,  389.3, 194.6, "pcie5x16", RDNA),
    ("PROW6800",          32,  512,   71.3,  35.7, "pcie4x16", "AMD Radeon PRO W6800 datasheet"),
    ("PROW7900",          48,  864,  122.6, 122.6, "pcie4x16", RDNA),
    ("MI100",             32, 1228.8, 184.6, 184.6, "pcie4x16", "AMD Instinct MI100 datasheet"),
    ("MI210",             64, 1638.4,   181,   181, "pcie4x16", "AMD Instinct MI210 datasheet"),
    ("MI300X",           192, 5300, 2614.9, 1307.4, "pcie5x16", "AMD Instinct MI300X datasheet"),
    ("MI325X",           256, 6000, 2614.9, 1307.4, "pcie5x16", "AMD Instinct MI325X datasheet"),
)
# fmt: on

# Cards that keep their error correction in the memory itself, switched on as they are sold: a sixteenth of it is not to
# be had. (HBM has bits of its own for it; NVIDIA, "ECC memory" in the manual of nvidia-smi.)
WITH_ECC = frozenset(("P40", "T4", "A10", "A10G", "A40", "L4", "L40", "L40S"))
