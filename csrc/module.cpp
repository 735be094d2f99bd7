// The Python module mpamatch._C. Importing it loads the operations of bindings/; itself it only tells how it was built.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "build_information.h"
#include "cpu/pick.h"

namespace py = pybind11;

namespace {

py::list split(const char* text) {
    py::list parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, ';');) parts.append(part);
    return parts;
}

py::dict build_information() {
    const mpamatch::BuildInformation& built = mpamatch::build_information;
    py::dict facts;
    facts["version"] = built.version;
    facts["torch"] = built.torch;
    facts["compiler"] = built.compiler;
    facts["flags"] = built.flags;
    facts["instruction_sets"] = split(built.instruction_sets);
    facts["instruction_set"] = mpamatch::name_of(mpamatch::instruction_set());
    facts["cuda"] = built.cuda;
    facts["cuda_architectures"] = split(built.cuda_architectures);
    facts["source_hash"] = built.source_hash;
    facts["cuda_source_hash"] = built.cuda_source_hash;
    return facts;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "The native operations of mpamatch for the CPU.";
    module.def("build_information", &build_information, "How this library was built, and what it runs on.");
}
