/* A stand-in for the CUDA driver, loaded before torch: what autograd's engine asks before it runs
   a backward pass on a device. torch's own no-op guard does the rest (see shim.py). */
#include <stdbool.h>

signed char fake_count = 0; /* raised when that guard is in place */

/* c10::cuda::device_count(), device_count_ensure_non_zero() and hasPrimaryContext() */
signed char _ZN3c104cuda12device_countEv(void) { return fake_count; }
signed char _ZN3c104cuda28device_count_ensure_non_zeroEv(void) { return fake_count; }
bool _ZN3c104cuda17hasPrimaryContextEa(signed char device) { return true; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{
    *flags = 0;
    *active = 1;
    return 0;
}
