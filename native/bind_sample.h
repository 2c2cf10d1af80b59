// bind_sample.cc's part of the module.
#pragma once
#include <nanobind/nanobind.h>

namespace stoker {
void bind_sample(nanobind::module_& m);
}
