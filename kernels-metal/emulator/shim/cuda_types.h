// What half is to CUDA, and where functions run.
#pragma once
#include <cuda_fp16.h>
#define SHIM_FN __device__
